"""What results look like: one `Report`, and a module per kind of rendering.

The suffix of a file chooses the kind. A rendering knows the report and nothing of how it came about.
"""
