"""What Outtray stores and says: the words that producer, worker and sandbox share. It knows none of them."""
