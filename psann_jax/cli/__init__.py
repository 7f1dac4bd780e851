"""The command line: one file per command, and the parsers they share."""
