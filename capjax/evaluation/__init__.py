"""What becomes of a captioned split: scores, beside those of another evaluation, and the files that people look at."""
