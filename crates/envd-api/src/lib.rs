//! The envd wire types, shared by the agent, the server and the tests.
