//! What the programs count: every way a packet can go, by name.
//!
//! One list gives the counter, its name in metrics and its heading in docs/operating.md.

/// Makes an enum whose variants are counters.
macro_rules! counters {
    ($(#[$top:meta])* $name:ident from $first:literal {
        $($(#[$doc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$top])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them, in the order of their counters.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// Index in the `counters` table.
            #[inline(always)]
            pub const fn counter(self) -> u32 { $first + self as u32 }

            /// The name in metrics and docs.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

counters! {
    /// A packet that goes on unchanged.
    Pass from 0 {
        /// Neither IP nor anything else that is looked into.
        NotIp = "not_ip",
        /// The source is none of this node's.
        NotOurs = "not_ours",
        /// The destination is one that is not translated.
        PrivateDestination = "private_destination",
        /// The policy leaves translation to somebody else (user-defined routing).
        Untranslated = "untranslated",
        /// TCP from before the first attach, while it is still adopted.
        Adopted = "adopted",
        /// An answer of the node itself to a connection to its own address.
        NodeOwn = "node_own",
        /// Arrived without being wrapped.
        NotWrapped = "not_wrapped",
        /// On a mux: not for a VIP.
        NotVip = "not_vip",
        /// The tables have not been filled yet.
        NotConfigured = "not_configured",
        /// An RST of the agent's own, for a flow that is over.
        Answer = "answer",
        /// Of no flow, while the programs are being uninstalled.
        Leaving = "leaving",
        /// A frame that arrived and is addressed to many, or on a node to another machine.
        NotAddressed = "not_addressed",
        /// IPv6, which is not translated.
        Ipv6 = "ipv6",
        /// Of a VLAN that is not this interface's own.
        Tagged = "tagged",
    }
}

counters! {
    /// Why a packet is refused.
    Drop from 32 {
        /// A header is cut short or contradicts itself.
        Malformed = "malformed",
        /// A later fragment of a datagram whose first one has not been seen.
        Fragment = "fragment",
        /// A protocol without ports.
        Protocol = "protocol",
        /// An ICMP error that carries no packet of a flow that is known.
        IcmpNoFlow = "icmp_no_flow",
        /// An ICMP message that is not translated.
        IcmpType = "icmp_type",
        /// No method of leaving is there for this source and protocol.
        NoOutbound = "no_outbound",
        /// Outbound ICMP echo, which `icmpEcho: Drop` refuses.
        IcmpEcho = "icmp_echo",
        /// Every port of the holding is in use for this destination.
        PortsExhausted = "ports_exhausted",
        /// The node holds no port that may be used.
        NoLease = "no_lease",
        /// The flow table has no room.
        FlowTableFull = "flow_table_full",
        /// TCP that belongs to no flow and opens none.
        NoFlow = "no_flow",
        /// The source is a VIP or a mux, which nobody here may use.
        SpoofedSource = "spoofed_source",
        /// Sent to the GUE port by a pod.
        GuePort = "gue_port",
        /// A wrapped packet that is not from a mux.
        NotMux = "not_mux",
        /// A wrapped packet for an address and port that this node does not hold.
        NotHeld = "not_held",
        /// A Service port without a ready pod on this node.
        NoEndpoint = "no_endpoint",
        /// On a mux: a frame with a packet for a VIP, addressed to another machine.
        OtherMac = "other_mac",
        /// On a mux: the VIP has no such listener and the port is leased to nobody.
        NoRule = "no_rule",
        /// The source is not among those that the rule allows.
        SourceNotAllowed = "source_not_allowed",
        /// On a mux: the rule has no backend.
        NoBackend = "no_backend",
        /// On a mux: too large to be wrapped.
        TooBig = "too_big",
        /// On a mux: the way to the gateway is not known.
        NoGateway = "no_gateway",
        /// On a mux: the lease points to a node that it does not know: its tables are too old.
        StaleMux = "stale_mux",
        /// On a mux: another mux hands over what is no fragment for a VIP.
        NotFragment = "not_fragment",
        /// The packet could not be changed as decided: the kernel refused.
        WriteFailed = "write_failed",
        /// The pod or its namespace has as many flows as it may.
        QuotaExceeded = "quota_exceeded",
        /// Another source of this node uses a protocol without ports towards this destination.
        ProtocolInUse = "protocol_in_use",
        /// Of no known flow, while flows are carried over to another table.
        Held = "held",
        /// The client's port, and every other one tried for it, is in use towards the pods.
        ClientPortInUse = "client_port_in_use",
        /// Met congestion while it was wrapped, and its ends do not know that mark.
        Congested = "congested",
        /// IPv6 of a pod, which `ipv6: Refuse` keeps in.
        Ipv6Refused = "ipv6_refused",
        /// A wrapped packet whose tag shows that no mux of this cluster has sent it.
        WrongTag = "wrong_tag",
        /// From the outside, with a pod, a node or a mux as source.
        InternalSource = "internal_source",
    }
}

counters! {
    /// A packet that was changed and goes on, and what happened on the way.
    Event from 80 {
        /// Source translated on the way out.
        TranslatedOut = "translated_out",
        /// Unwrapped and destination translated on the way in.
        TranslatedIn = "translated_in",
        /// A flow was opened from inside.
        FlowOut = "flow_out",
        /// A flow was opened from outside.
        FlowIn = "flow_in",
        /// On a mux: wrapped, a reply by its port's lease.
        WrappedReply = "wrapped_reply",
        /// On a mux: wrapped, to a backend of a rule.
        WrappedInbound = "wrapped_inbound",
        /// On a mux: a later fragment, wrapped to where the first one went.
        WrappedFragment = "wrapped_fragment",
        /// On a mux: a fragment, wrapped to the mux that keeps its datagram together.
        HandedOver = "handed_over",
        /// The MSS of a SYN was lowered.
        MssLowered = "mss_lowered",
        /// A port was in use when it was tried.
        PortCollision = "port_collision",
        /// A flow that was closing was opened again.
        Reopened = "reopened",
        /// An ICMP error about a flow was translated.
        ErrorTranslated = "error_translated",
        /// On a mux: an ICMP error was wrapped, by the packet that it carries.
        WrappedError = "wrapped_error",
        /// On a mux: the sender of a packet that was too large was told.
        ToldTooBig = "told_too_big",
        /// A FIN or RST whose number neither end would accept went on without ending its flow.
        EndDoubted = "end_doubted",
        /// A flow that came in was confirmed: its opener hears the answers.
        FlowConfirmed = "flow_confirmed",
        /// A packet of no flow here was sent to the other node that may have it.
        PassedOn = "passed_on",
        /// A client got another port towards a pod, since its own is in use there.
        ClientPortMoved = "client_port_moved",
    }
}

/// Rows of the `counters` table.
pub const COUNTERS: u32 = 112;

const _: () = {
    // Each has a row of its own.
    let [pass, drop, event] = [Pass::ALL.len(), Drop::ALL.len(), Event::ALL.len()];
    assert!(pass <= 32 && 32 + drop <= 80 && 80 + event <= COUNTERS as usize);
};
