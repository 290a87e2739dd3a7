"""Where results go: files a person and other programs read. Results are ordered before they come here."""

from batchd.sinks.jsonl import JsonlFile, encode_line, to_json

__all__ = ["JsonlFile", "encode_line", "to_json"]
