"""Data of CIAN: class tables, lists, annotations, RecordIO files, common-class pairing, transforms
and iterators.
"""
