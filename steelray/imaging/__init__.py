"""Images from bytes to pixels, tiles and foreground, and small pictures for people."""
