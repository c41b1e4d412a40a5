"""One file a public data set or layout: its ``IMPORTER``, found by the file's name. A file added here is a command."""
