"""Artefacts on disk: manifests and their one reader, whole files and folders, text from outside."""
