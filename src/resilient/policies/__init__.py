"""The policies: each a small state machine that decides, and a public class around it."""
