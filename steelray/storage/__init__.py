"""Locations in S3 or a local folder, their clients, and the listing of an archive."""
