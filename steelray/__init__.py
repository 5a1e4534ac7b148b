"""steelray: distributed batch scoring of steel strip image archives on Ray.

The core (everything but `steelray.cluster`) knows no Ray; see README.md for the file tree.
"""

__version__ = "0.1.0"
