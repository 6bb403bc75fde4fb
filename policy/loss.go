package policy

// Loss says whether what is open may be finished (see [OnLoss]) when a Reason
// takes the permission away.
type Loss uint8

// The zero Loss is the one of every Reason that is not named: it cuts.
const (
	// LossHard is a reason to fear the flow itself.
	LossHard Loss = iota
	// LossSoft is the passing of time and no news of the person, the device or
	// the place.
	LossSoft
	// LossByPublish is soft when a publish of policy brought it about, and hard
	// when a fact did.
	LossByPublish
)

var losses = map[Reason]Loss{
	ReasonSessionExpired: LossSoft,
	ReasonOutsideHours:   LossSoft,
	ReasonPostureStale:   LossSoft,
	ReasonPostureUnknown: LossSoft,

	ReasonGroupNotAllowed:  LossByPublish,
	ReasonMethodNotAllowed: LossByPublish,
	ReasonPathNotAllowed:   LossByPublish,
	ReasonPolicyDenied:     LossByPublish,
}

// Loss returns the Reason's Loss.
func (r Reason) Loss() Loss { return losses[r] }
