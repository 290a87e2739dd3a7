"""Bytes and what they mean. Pure: encode, decode, verify; nothing here opens, reads or sends anything.

Any bytes at all decode to a value or to FormatError.
"""
