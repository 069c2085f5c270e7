"""How weights travel: torch files in official and timm names, our own files, the hub; both ways."""
