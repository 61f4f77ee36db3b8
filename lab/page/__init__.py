"""Tables and pictures of results, written into markdown documents from the JSON files beside them."""
