"""The steps from raw pages to clean documents (section 2 of the MindLLM paper), each a datatrove `PipelineStep`."""
