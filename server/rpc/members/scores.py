"""UserService: scores."""

from __future__ import annotations

from dataclasses import asdict

from blatam.user.v1 import score_pb2 as pb
from server.domain.members.scores import DEFAULT_WEIGHTS, Scores, Weights
from server.rpc.call import Call


class ScoreServicer:
    """The RPC of scores."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    async def GetUserScore(
        self, request: pb.GetUserScoreRequest, call: Call
    ) -> pb.GetUserScoreResponse:
        """Compute the score of a member."""
        weights = DEFAULT_WEIGHTS
        if request.HasField("weights"):
            sent = request.weights
            weights = Weights(sent.posts, sent.followers, sent.tenure)
        score = await self._scores.get(request.id, weights)
        return pb.GetUserScoreResponse(
            user_id=request.id,
            score=score.value,
            weights=pb.ScoreWeights(**asdict(score.weights)),
            parts=pb.ScoreParts(**asdict(score.parts)),
        )
