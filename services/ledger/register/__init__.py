"""The register (台账): documents into facts, any day as it was known at any size, borders, precedents."""
