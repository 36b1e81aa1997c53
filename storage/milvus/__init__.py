"""Milvus: vectors of what is searched by meaning. Nothing here is the truth: PostgreSQL can fill all of it again."""
