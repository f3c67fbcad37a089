"""Object storage services: S3, Azure Blob, Google Cloud Storage, and a local folder in their manner."""
