"""What tests share: real servers, a manual clock, builders."""
