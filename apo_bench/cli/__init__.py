"""The command line: one file a group of commands. Everything heavy is imported inside the command that needs it."""
