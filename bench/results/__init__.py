"""What a measurement leaves behind: provenance, files, pictures, pages, comparisons in pairs."""
