"""Making versions of data that lives elsewhere: buckets of OSMO, caches of DVC, any storage prefix."""
