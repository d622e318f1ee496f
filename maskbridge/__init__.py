"""maskbridge: from pixel masks of defects to a detector, a segmenter and one honest comparison."""

__version__ = "0.1.0"
