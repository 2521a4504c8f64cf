"""The model: loaded in shards, adapted, and computing packs so that no sample sees another."""
