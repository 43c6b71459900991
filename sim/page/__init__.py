"""Pages that need no network: their templates, style and scripts, and the data of interactive charts."""
