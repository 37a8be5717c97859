"""Where vectors are on disk: the journal of what was acknowledged, and Milvus, which takes it over from there."""
