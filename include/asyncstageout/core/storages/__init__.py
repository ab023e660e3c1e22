"""Names on storages: a site's own description of them, from LFN to PFN and back, and who understands whom."""
