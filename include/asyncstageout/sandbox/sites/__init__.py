"""Sites with real files: WebDAV storages of many sites, in one process (docs/sandbox.md)."""
