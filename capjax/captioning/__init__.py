"""From images to sentences, for every job: models restored, searches compiled, photos and splits captioned."""
