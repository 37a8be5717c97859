"""From a request's bytes to an answer's: the Open Inference Protocol over the versions that this node has loaded."""
