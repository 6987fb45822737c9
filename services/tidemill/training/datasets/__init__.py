"""Where samples come from: built-in data sets, and one file a format of uploaded ones."""
