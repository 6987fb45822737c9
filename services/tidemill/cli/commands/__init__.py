"""The subcommands, one file each, found by file name."""
