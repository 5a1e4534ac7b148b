"""An embedded S3 server, generated strips, and the demo's archive."""
