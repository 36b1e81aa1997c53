"""Files: exports, imports, reports and backups, in S3 or a local directory."""
