"""Redis (or Valkey): sessions, call limits and signals. Key names are the source specification's."""
