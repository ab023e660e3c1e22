"""What speaks to services outside: FTS3 and storage."""
