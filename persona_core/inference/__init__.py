"""Forward passes: reading and steering the residual stream, decoding, teacher-forced reading."""
