"""Ray: connection, placement, actors, pipelines and training workers; the only importer of ray."""
