"""Reading and writing weights: our own files, torch files in official and timm names, the hub."""
