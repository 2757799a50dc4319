"""From image-level labels to seeds: the classifier, its maps, saliency, and what the seeds are worth."""
