"""Operations on arrays that are faster, for the sizes of a vocabulary, than those of `jax.numpy` and `jax.lax`."""
