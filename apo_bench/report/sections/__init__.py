"""The report's sections by subject: frames in, sections out. A new table is one entry among a section's blocks."""
