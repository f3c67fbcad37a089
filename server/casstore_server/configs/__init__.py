"""Configs that are kept in the database: what they may say, and what they do."""
