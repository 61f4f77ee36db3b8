"""Acceptance and speed: drafted decoding beside plain `model.generate`, and reports of both."""
