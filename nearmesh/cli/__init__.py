"""The command line `nearmesh`: tables for people, `--json` for programs."""
