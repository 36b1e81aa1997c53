"""What media plans will probably reach, and what they have reached."""
