"""Stage functions: thin adaptors that read folders, call one room, and write one folder."""
