"""Backbone, heads, student and teacher."""
