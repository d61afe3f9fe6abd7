"""Raw records of any format, and the text in them: the first step of the corpus pipeline."""
